"""Files: Hugging Face directories in, packed and dequantized directories out. Needs numpy alone."""
