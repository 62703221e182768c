"""From a trained model to a published checkpoint: ONNX graph, unpadding, quantisation and verification."""
