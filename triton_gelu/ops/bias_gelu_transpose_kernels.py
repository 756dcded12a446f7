from .bias_gelu_kernels import *
