"""Files that are deployed: ONNX graphs exported, sliced, compared, quantised."""
