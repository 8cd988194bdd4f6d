"""PyTorch Lightning backend of ptychopinn."""
