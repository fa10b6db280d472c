"""Torch modules: `TernaryLinear` for inference, `BitLinear` for training, surgery on any `nn.Module`."""
