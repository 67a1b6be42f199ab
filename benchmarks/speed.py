"""Speed of the networks, relative to the machine's matrix product and to each other.

    python -m benchmarks.speed                      # everything
    python -m benchmarks.speed encoder512 bfloat16  # some sections
    python -m benchmarks.speed --volume             # one 512 x 512 x 100 scan from file to file, a minute on a CPU

Random weights, vit_b and sam2_tiny unless a line names another network. The sides of a comparison take turns in one
process, and a ratio is the median of the turns' ratios, because other work on the machine slows both sides; all times
are medians. Peak memory is the resident set of a process that runs one network (measure it before other sections: a
process inherits the peak of its parent).
The exit status is 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor

from benchmarks import speed_fusion, speed_sam2
from benchmarks.networks import SYSTEMS, build, encode, peak_memory
from benchmarks.timing import (
    ATTENTION,
    Report,
    Run,
    Times,
    explicit_attention,
    multiply_adds,
    own_peak_memory,
    product,
    training_step,
)
from samora_monai.checkpoints.model_settings import ModelSettings
from samora_monai.networks import Segmenter, build_segmenter
from samora_monai.networks.config import DECODERS

MODULE = "benchmarks.speed"
SAM2_TARGETS = {"three experts, HL-Attn": "<= 2.2", "three experts, HL-Attn D/4": "<= 1.6"}
BUNDLE = Path(__file__).parents[1] / "bundles" / "samora_segmentation"


def machine(report: Report, turns: int) -> None:
    report.title("machine and plain encoder, 224, batch 4; the ratio is to the matrix product's rate")
    net, x = build("plain encoder", 224), torch.rand(4, 3, 224, 224)
    size, work = 2048, multiply_adds(partial(encode, net, x))
    times = Times({"product": product(size, torch.float32), "encoder": partial(encode, net, x)}, 2 * turns)
    rate = size**3 / times["product"]
    report.line(f"matrix product, {2 * rate / 1e9:.0f} GFLOP/s", times["product"])
    share = times.ratio("product", "encoder") * work / size**3
    report.line(f"plain encoder, {work / 1e9:.1f} G multiply-adds", times["encoder"], share, ">= 0.7")


def encoders(
    report: Report, turns: int, image_size: int, batch: int, targets: dict[str, str], base: str = "vit_b"
) -> None:
    report.title(f"{base}, encoder, {image_size}, batch {batch}; the ratio is to the plain encoder")
    x = torch.rand(batch, 3, image_size, image_size)
    times = Times({name: partial(encode, build(name, image_size, base=base), x) for name in SYSTEMS}, turns)
    for name in times.seconds:
        report.line(name, times[name], times.ratio(name, "plain encoder"), targets.get(name, ""))


def decoders(report: Report, turns: int) -> None:
    """Measure the cost of H-SAM's second stage."""
    for image_size, batch, target in ((224, 4, "<= 1.35"), (512, 1, "<= 1.25")):
        report.title(f"SAMed and H-SAM, forward, {image_size}, batch {batch}; the ratio is to SAM's decoder alone")
        x = torch.rand(batch, 1, image_size, image_size)
        runs: dict[str, Run] = {}
        for name in DECODERS:
            torch.manual_seed(0)
            net = build_segmenter("vit_b", image_size=image_size, num_classes=9, decoder=name).eval()
            runs[name] = torch.no_grad()(partial(net, x))
        times = Times(runs, turns)
        for name in times.seconds:
            bound = target if name == "hierarchical" else ""
            report.line(f"decoder {name}", times[name], times.ratio(name, "sam"), bound)


def explicit(report: Report, turns: int) -> None:
    report.title("encoder, 512, batch 1; the ratio is explicit softmax to ours")
    x = torch.rand(1, 3, 512, 512)
    for name, target in (("plain encoder", ">= 1.15"), ("three experts, HL-Attn D/4", "")):
        net = build(name, 512)
        reference = patch(ATTENTION, explicit_attention)(partial(encode, net, x))
        times = Times({"explicit": reference, "fused": partial(encode, net, x)}, turns)
        report.line(name, times["fused"], times.ratio("explicit", "fused"), target)


def training(report: Report, turns: int) -> None:
    report.title("training step, 224, batch 4; the ratio is to its forward pass with gradients recorded")
    x = torch.rand(4, 1, 224, 224)
    for name, target in (("one expert", "<= 1.8"), ("three experts, HL-Attn", "<= 2.4")):
        forward, step = training_step(build(name, 224), x)
        counted = multiply_adds(step) / multiply_adds(forward)
        times = Times({"inference": torch.no_grad()(forward), "forward": forward, "step": step}, turns)
        report.line(f"{name}: forward, no gradients recorded", times["inference"])
        report.line(f"{name}: forward", times["forward"])
        report.line(f"{name}: step", times["step"], times.ratio("step", "forward"), target)
        report.line(f"{name}: the same, counted in multiply-adds", None, counted)


def memory(report: Report, _: int) -> None:
    report.title("training step, 224, batch 4; the ratio is peak memory in GB")
    report.line("one expert", None, peak_memory("one expert"))
    report.line("three experts, HL-Attn", None, peak_memory("three experts, HL-Attn"), "<= 2.9")


def bfloat16(report: Report, turns: int) -> None:
    report.title("networks under bfloat16 autocast, batch 4; the ratio is the speed relative to float32")
    large = ">= 1.4"
    for base, size, target in (("tiny", 128, ""), ("tiny", 192, ""), ("sam2_tiny", 224, large), ("vit_b", 224, large)):
        x = torch.rand(4, 1, size, size)
        for name in ("one expert", "three experts, HL-Attn"):
            net = build(name, size, base=base)
            (forward, step), (narrow, narrow_step) = training_step(net, x), training_step(net, x, amp=True)
            for title, wide, run in (
                ("inference", torch.no_grad()(forward), torch.no_grad()(narrow)),
                ("step", step, narrow_step),
            ):
                times = Times({"float32": wide, "bfloat16": run}, turns)
                ratio = times.ratio("float32", "bfloat16")
                report.line(f"{base} {size}, {name}: {title}", times["bfloat16"], ratio, target)


def merged(report: Report, turns: int) -> None:
    report.title("inference with one expert, batch 4; the ratio is the speed with the expert merged to that without")
    for base, size in (("tiny", 192), ("sam2_tiny", 224), ("vit_b", 224)):
        net, x = build("one expert", size, base=base).eval(), torch.rand(4, 1, size, size)
        one = deepcopy(net)
        one.image_encoder.merge_experts()
        times = Times({name: torch.no_grad()(partial(n, x)) for name, n in (("apart", net), ("merged", one))}, turns)
        report.line(f"{base} {size}", times["merged"], times.ratio("apart", "merged"), ">= 1")


def gpu(report: Report, turns: int) -> None:
    report.title("GPU, bfloat16 and torch.compile; the ratio is to the bfloat16 matrix product's rate")
    if not torch.cuda.is_available():
        print("not run: no GPU here")
        return
    size = 8192
    rate = size**3 / Times({"product": product(size, torch.bfloat16, "cuda")}, 4 * turns)["product"]
    for image_size, batch in ((224, 64), (512, 16)):
        x = torch.rand(batch, 3, image_size, image_size, device="cuda")
        for name in SYSTEMS:
            net = build(name, image_size, "cuda")
            work = multiply_adds(partial(encode, net, x[:1])) * batch
            net.image_encoder.compile()
            run = torch.autocast("cuda", torch.bfloat16)(partial(encode, net, x))
            seconds = Times({"encoder": run}, turns)["encoder"]
            title = f"{name}, {image_size}, {batch / seconds:.0f} slices/s"
            report.line(title, seconds, work / seconds / rate)


class Stopwatch:
    """Call a network without gradients and add up its seconds."""

    def __init__(self, net: Segmenter) -> None:
        self.net = net
        self.seconds = 0.0

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        start = time.perf_counter()
        logits = self.net(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start
        return logits


def volume(report: Report, slices: int) -> None:
    """Measure a scan from file to file, with the transforms and the inferer of the bundle's `inference.json`."""
    report.title(f"SAMed, input 224, a scan of 512 x 512 x {slices} from file to file; the ratio is to the total")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = Stopwatch(build("one expert", 224, str(device)).eval())
    config = ConfigParser()
    config.read_config(BUNDLE / "configs" / "inference.json")
    config["model"] = ModelSettings()  # random weights have no file
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.nii.gz"
        voxels = np.random.default_rng(0).integers(-1000, 1000, (512, 512, slices)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-0.8, -0.8, 3, 1])), scan)
        config["dataset_dir"], config["output_dir"] = folder, str(Path(folder) / "labels")
        prepare, inferer, save = (config.get_parsed_content(k) for k in ("preprocessing", "inferer", "postprocessing"))
        times = [time.perf_counter()]
        item = prepare({"image": str(scan)})
        times.append(time.perf_counter())
        item["pred"] = inferer(item["image"][None].to(device), network)[0]
        times.append(time.perf_counter())
        save(item)
        times.append(time.perf_counter())
    read, inferred, saved = (b - a for a, b in pairwise(times))
    everything = times[-1] - times[0]
    report.line("reading and preparing", read, read / everything)
    report.line("network", network.seconds, network.seconds / everything)
    report.line("slicing and argmax", inferred - network.seconds, (inferred - network.seconds) / everything)
    report.line("turning back and saving", saved, saved / everything)
    report.line("all outside the network", everything - network.seconds, 1 - network.seconds / everything, "<= 0.1")
    report.line(f"peak memory {own_peak_memory():.2f} GB", None)


SECTIONS: dict[str, Callable[[Report, int], None]] = {
    "memory": memory,
    "machine": machine,
    "encoder224": partial(
        encoders,
        image_size=224,
        batch=4,
        targets={
            "three experts, HL-Attn": "<= 2.2",
            "three experts, HL-Attn D/4": "<= 1.55",
            "three experts, HL-Attn on blocks": "<= 4.6",
        },
    ),
    "encoder512": partial(
        encoders,
        image_size=512,
        batch=1,
        targets={"three experts, HL-Attn": "<= 2.6", "three experts, HL-Attn D/4": "<= 1.6"},
    ),
    "sam2": speed_sam2.hiera,
    "sam2_224": partial(encoders, image_size=224, batch=4, targets=SAM2_TARGETS, base="sam2_tiny"),
    "sam2_512": partial(encoders, image_size=512, batch=1, targets=SAM2_TARGETS, base="sam2_tiny"),
    "bases": speed_sam2.bases,
    "bases_memory": speed_sam2.bases_memory,
    "decoders": decoders,
    "explicit": explicit,
    "training": training,
    "fusion_blocks": speed_fusion.fusion_blocks,
    "bfloat16": bfloat16,
    "merged": merged,
    "gpu": gpu,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"any of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--volume", metavar="SLICES", type=int, nargs="?", const=100, help="a scan (100 slices) instead"
    )
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(unknown)}; choose from {', '.join(SECTIONS)}")
    torch.set_num_threads(args.threads)
    if not args.sections and not args.volume:  # each in a fresh process: the history of an allocator changes its speed
        options = ["--turns", str(args.turns), "--threads", str(args.threads)]
        return max(subprocess.run([sys.executable, "-m", MODULE, name, *options]).returncode for name in SECTIONS)
    report = Report()
    if args.volume:
        volume(report, args.volume)
    for name in args.sections:
        SECTIONS[name](report, args.turns)
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
