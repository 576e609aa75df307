"""Train, evaluate and generate with multi-modal medical-imaging models on parallel and distributed systems."""

__version__ = "0.1.0"
