"""The model module: SqueezeSegV3 in its training form and its deploy form, official checkpoints, export."""
