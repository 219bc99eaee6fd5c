"""What differs between CPU and CUDA: sessions, the KV cache, providers, memory."""
