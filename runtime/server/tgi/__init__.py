"""Text Generation Inference's protocol."""
