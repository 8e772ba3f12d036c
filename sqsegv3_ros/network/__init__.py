"""The model module: SqueezeSegV3 for training, import of official checkpoints, and export."""
