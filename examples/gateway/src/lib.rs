//! An LLM gateway made of bartizan layers.
