"""The model module: SqueezeSegV3 for training, official checkpoints, and export."""
