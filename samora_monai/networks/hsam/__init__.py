"""What H-SAM adds to SAM (https://arxiv.org/abs/2403.18271): a second decoder."""
