"""One thread for each test process: the models are tiny, and pytest-xdist has a process for each core."""

import torch

torch.set_num_threads(1)
