"""OpenVINO: integer execution of the ``qdq`` target's graph on a CPU; its engines, its kernels, and the graph as they run it best."""
