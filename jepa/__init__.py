"""jepa: pretrain Joint-Embedding Predictive Architectures."""
