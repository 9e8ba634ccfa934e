"""How to read a network: adapters turn a pretrained model into search layers."""
