"""Packs the bundles into a wheel, as `samora_monai/bundles`. Everything else is in setup.cfg."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# what a bundle consists of before it is used: no weights, no results
BUNDLE_FILES = ("LICENSE", "large_files.yml", "configs/**/*", "docs/*", "models/.gitkeep")


class BuildWithBundles(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # an editable install uses the bundles of the checkout
            return
        files = [file for pattern in BUNDLE_FILES for file in Path("bundles").glob(f"*/{pattern}") if file.is_file()]
        if not files:
            raise FileNotFoundError("no bundles beside setup.py; build from a checkout or a complete sdist")
        for file in files:
            target = Path(self.build_lib, "samora_monai", file)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


setup(cmdclass={"build_py": BuildWithBundles})
