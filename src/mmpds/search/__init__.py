"""Search an archive of images by text or image, with the embeddings of a CLIP."""
