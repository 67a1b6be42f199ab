"""`python -m samora_monai.pipeline`: the same as `samora`."""

from samora_monai.pipeline.command import main

if __name__ == "__main__":
    main()
