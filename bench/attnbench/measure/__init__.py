"""Measuring: clocks, sampling, memory."""
