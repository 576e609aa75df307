"""Sources of images, the contract they meet, and how they reach a model."""
