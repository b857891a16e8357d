"""The dispatcher ops as Python sees them: fake implementations (shapes only) and ``torch.autograd.Function`` wrappers."""
