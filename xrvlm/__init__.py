from xrvlm import _torchvision as _torchvision  # before anything else imports torchvision
