import torch

import xrvlm  # noqa: F401  first: it mends torchvision where its wheel does not fit torch

torch.set_num_threads(1)                 # tiny tensors: a second thread costs more than it computes
