"""What SAM 2 has in place of parts of SAM (https://arxiv.org/abs/2408.00714): Hiera, its neck, the mask decoder."""
