"""``quantize --auto-bits --sensitivity decoupled`` against ``snr``, on networks with attention to a condition and over frames."""
