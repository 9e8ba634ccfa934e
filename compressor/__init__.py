"""Compress a trained PyTorch network to a budget and export verified ONNX."""
