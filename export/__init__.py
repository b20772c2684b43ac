"""Training, quantization, evaluation and packaging of the station's models; for a workstation, not for the line."""
