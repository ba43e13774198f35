"""The tables of docs/performance.md, made from a stored run.

python -m tests.bench.page        # after cp runs/bench/bench.json docs/

A table stands in the page between <!-- bench: NAME --> and <!-- end -->. Text in braces is a detail of the run, times a
factor, with a number of places: {similarity_10_s*1000:0}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mois.files.atomic import write_text
from tests.bench.run import STORED, figures_of
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "performance.md"

FIGURES = (
    (
        "semantic_100_vs_1", 2,
        "time to search one tile with 100 exemplars, divided by the time with 1 exemplar (without the encoder)",
        "1.3 or less",
    ),
    (
        "semantic_100_vs_dense_10", 3,
        "the same time with 100 exemplars, divided by the time of the paper's dense attention with 10 exemplars",
        ".125 or less",
    ),
    (
        "dice_merged_vs_all", 2,
        "Dice of sessions with about a hundred exemplars, merged into 16 ({similarity_merged_dice:3}), divided by the "
        "Dice with all ({similarity_all_dice:3}). Nano as pretrained.",
        "within .01",
    ),
    (
        "dice_foreground_vs_dense", 2,
        "Dice of attention with foreground tokens ({attention_foreground_dice:4}), divided by the Dice with all tokens "
        "({attention_dense_dice:4}). 10 exemplars; see below.",
        "within .01",
    ),
    ("bytes_per_exemplar", 0, "bytes of an exemplar of `Similarity`", "16 KiB or less"),
    (
        "click_vs_encode", 3,
        "time from a corrective click to its 2-D mask (`session.preview`), divided by the time to encode the scan. "
        "Default phantom, nano.",
        ".02 or less",
    ),
    (
        "retrack_vs_encode", 3,
        "time to track the corrected lesion again, divided by the time to encode the scan", ".10 or less",
    ),
    (
        "tracking_batched_vs_serial", 1,
        "time to track 50 lesions one after another ({serial_s:2} s), divided by the time to track them together "
        "({batched_s:2} s). Nano.",
        "5 or more: missed",
    ),
    (
        "encoder_calls_per_tile", 0,
        "how often a tile is encoded in a session of clicks, propagations and a correction", "1",
    ),
    (
        "propagate_again_vs_first", 2,
        "CPU seconds of a propagation after one more click ({again_s:1} s), divided by those of the first, which also "
        "encodes the scan ({first_s:1} s). 3 exemplars, then 4; default phantom, second nano",
        ".35 or less: missed",
    ),
    (
        "swap_bundle_ms", 1,
        "milliseconds to go to another bundle of the nano with the same frozen trunk, on one encoded scan; its answers "
        "then encode {encoder_calls_after_swap:0} tiles again",
        "50 or less",
    ),
    (
        "train_frozen_cached_vs_full", 1,
        "training episodes a CPU-second with a frozen encoder and a warm cache, divided by full fine-tuning",
        "4 or more",
    ),
    (
        "train_late_lora_vs_full", 1,
        "the same for LoRA in the last stage of the trunk; the frozen part is cached "
        "({train_late_lora_uncached_vs_full:1} without cache)",
        "2 or more",
    ),
    (
        "memory_frozen_vs_full", 2,
        "memory with a frozen encoder, divided by full fine-tuning. Weights, gradients, optimiser and saved "
        "activations are counted.",
        ".40 or less",
    ),
    ("memory_late_lora_vs_full", 2, "the same for LoRA in the last stage of the trunk", ".60 or less"),
    (
        "ddp2_vs_1", 2,
        "speed of two processes, divided by the speed of one. Each has one thread (256 px). Losses are equal to "
        "{losses_apart*1e7:0}e-7. A rank that runs alone needs {one_cpu_s_of_rank_0_per_step:1} CPU seconds for a "
        "step. If two ranks share the step, each needs {two_cpu_s_of_rank_0_per_step:1}.",
        "1.7 or more",
    ),
    (
        "seconds_per_slice_28_vs_7", 2,
        "seconds a slice of a scan of 28 slices, divided by those of 7 slices; 1 is linear (nano)", "1",
    ),
    (
        "lesions_300_vs_5", 2,
        "time of a propagation with 300 lesions as exemplars, divided by the time with 5", "1.5 or less",
    ),
    (
        "described_300_vs_semantic", 2,
        "time to describe 300 found lesions, as sessions do, divided by the time to find them", "none",
    ),
    (
        "memory_large_scan_gib", 1,
        "GiB of a session ({session_peak_gib:1}) and of an evaluation ({evaluation_peak_gib:1}) on a scan of "
        "44 x 1100 x 512 voxels with 300 lesions (nano)",
        "8 or less",
    ),
    (
        "kernels_per_step", 0,
        "aten operations of a training step, forward and backward, float32, counted on fake CPU tensors; see below. "
        "Hiera-tiny, 512 px, 16 images, 4 corrections.",
        "10,000 or less",
    ),
    (
        "kernels_per_tracked_slice", 0,
        "aten operations of a tracked slice: attention to the clicked slice, decoding, and its memory. The same for "
        "any number of lesions. Hiera-tiny, 512 px.",
        "none",
    ),
    (
        "follow_launches_per_slice", 1,
        "operations that a GPU is asked for, a tracked slice, with `inference.window: auto`, and on whole tiles "
        "({follow_launches_whole_tiles:1}). 10 lesions over 14 slices share them; a pretended GPU. Hiera-tiny, 512 px.",
        "as whole tiles",
    ),
    (
        "session_flops_vs_reference", 3,
        "TFLOP of a session of 20 lesions with 3 clicks and a propagation, with `inference.window: auto` "
        "({session_tflop:0}), divided by those of the reference ({reference_tflop:0}). Base_plus, 1024 px, counted "
        "calls; see below.",
        ".017 or less",
    ),
    (
        "whole_tiles_flops_vs_reference", 3,
        "the same with `inference.window: off`, the default ({whole_tiles_tflop:0} TFLOP)", "none",
    ),
    (
        "evaluate_scoring_vs_before", 2,
        "time to score a scan of 44 x 1100 x 512 voxels with 300 lesions ({scored_s:1} s), divided by that to score "
        "it on whole volumes ({scored_on_whole_volumes_s:1} s). All figures are equal.",
        ".5 or less",
    ),
    (
        "barriers_per_step", 0,
        "barriers that a rank asks for in a step of two accumulated batches. Every step is logged; two ranks on a CPU.",
        "0",
    ),
    (
        "position_code_bytes_32_vs_1", 1,
        "bytes of stored position codes after 32 images, divided by those after one image", "1.2 or less",
    ),
    (
        "cache_hits_half_room", 2,
        "share of images found in a feature cache that has room for half of them, from the second epoch on",
        ".4 or more",
    ),
    (
        "episode_cpu_s_1024", 2,
        "CPU seconds to draw an episode of 10 patches of 1024 px with augmentation, the mean of 20", "1.0 or less",
    ),
)  # fmt: skip
"""Name, places, what was measured, aim."""

TABLES: dict[str, tuple[Sequence[str], Sequence[Sequence[str]]]] = {
    "training": (
        ("arm", "MiB", "CPU-s a step", "episodes a CPU-s, with the cache"),
        (
            ("full fine-tuning", "{full_mib:0}", "{full_cpu_s:1}", "{full_episodes_per_cpu_s:2} (no cache)"),
            ("DoRA, all layers", "{dora_all_layers_mib:0}", "{dora_all_layers_cpu_s:1}", ""),
            ("LoRA, all layers", "{lora_all_layers_mib:0}", "{lora_all_layers_cpu_s:1}", ""),
            ("LoRA, last stage", "{late_lora_mib:0}", "{late_lora_cpu_s:1}", "{late_lora_cached_episodes_per_cpu_s:2}"),
            ("frozen", "{frozen_mib:0}", "{frozen_cpu_s:1}", "{frozen_cached_episodes_per_cpu_s:2}"),
        ),
    ),
    "propagations": (
        ("propagation", "ms with 10 exemplars", "ms with 100", "bytes an exemplar"),
        (
            (
                "`Similarity`", "{similarity_10_s*1000:0}", "{similarity_100_s*1000:0}",
                "{similarity_bytes_per_exemplar:0}",
            ),
            (
                "`Attention`, foreground tokens", "{foreground_10_s*1000:0}", "{foreground_100_s*1000:0}",
                "{foreground_bytes_per_exemplar:0}",
            ),
            ("`Attention`, the paper's", "{paper_10_s*1000:0}", "", "{paper_bytes_per_exemplar:0}"),
            ("`Prototype`", "{prototype_10_s*1000:0}", "{prototype_100_s*1000:0}", "{prototype_bytes_per_exemplar:0}"),
        ),
    ),
    "counts": (
        ("what", "measured", "measurement"),
        (
            ("largest change of a class's Dice by merging", "{merged_apart_at_most:3}", "`compact_exemplars`"),
            ("ms to describe one of 300 found lesions, Hiera-tiny, 512 px", "{described_300*1000/300:0}", "`lesions`"),
            (
                "operations of a step under CPU autocast to bfloat16, casts included", "{kernels_per_step_bf16:0}",
                "`kernels`",
            ),
            ("operations of a click (`decode`)", "{kernels_per_click:0}", "`answer_kernels`"),
            ("operations of an encoded tile", "{kernels_per_encoded_tile:0}", "`answer_kernels`"),
            (
                "operations of a tile that is searched with exemplars", "{kernels_per_searched_tile:0}",
                "`answer_kernels`",
            ),
            ("all-reduces that a rank asks for at a step", "{all_reduces_per_step:2}", "`barriers`"),
        ),
    ),
    "price": (
        ("part", "calls, whole tiles", "TFLOP", "calls, windows", "TFLOP"),
        (
            ("encoder", "{whole_tiles_encode_calls:0} tiles", "{whole_tiles_encode_tflop:1}",
             "{session_encode_calls:0} tiles", "{session_encode_tflop:1}"),
            ("memory attention", "{whole_tiles_attend_calls:0}", "**{whole_tiles_attend_tflop:1}**",
             "{session_attend_calls:0}", "{session_attend_tflop:1}"),
            ("tokens of the query, and remembered maps, on average", "{whole_tiles_tokens:0}; {whole_tiles_maps:1}", "",
             "{session_tokens:0}; {session_maps:1}", ""),
            ("decoder, for clicks and tracking", "{whole_tiles_decode_calls:0}", "{whole_tiles_decode_tflop:1}",
             "{session_decode_calls:0}", "{session_decode_tflop:1}"),
            ("memory encoder", "{whole_tiles_remember_calls:0}", "{whole_tiles_remember_tflop:1}",
             "{session_remember_calls:0}", "{session_remember_tflop:1}"),
            ("search with exemplars (`Similarity`)", "{whole_tiles_semantic_calls:0} tiles",
             "{whole_tiles_semantic_tflop:1}", "{session_semantic_calls:0} tiles", "{session_semantic_tflop:1}"),
            ("the session", "", "**{whole_tiles_tflop:1}**", "", "**{session_tflop:1}**"),
            ("the reference, {slices:0} slices", "", "**{reference_tflop:0}**", "", "**{reference_tflop:0}**"),
        ),
    ),
    "plan": (
        ("what", "measured unit", "times", "gives"),
        (
            (
                "read scans", "{compressed_megabytes:0} MB compressed, {megabytes:0} MB voxels",
                "1,000, three times: fingerprint (rank 0), hash and preparation (shared by all ranks)",
                "72 GB from the shared disk; rank 0 needs a minute",
            ),
            (
                "prepare scans (`prepared`)", "{prepare_s:1} CPU-s, 6 bytes a voxel on disk", "1,000 / 64 ranks",
                "1 minute with reading; 149 GB in files that all ranks map",
            ),
            (
                "draw an episode", "{ten_episodes_s/10:2} CPU-s (augmentation by TorchIO)", "1,000,000 / 768 cores",
                "**2.8 minutes**, 44 ms a step",
            ),
            ("encode 10 patches", "{tiny_512_gflop/100:2} TFLOP", "", ""),
            (
                "a whole step of an episode",
                "1.8 times its encoding: 1.0 TFLOP. Measured: 4.5 CPU-s without cache for three patches, and "
                "{tiny_512_s:2} to encode one of them.",
                "1,000,000 / (64 x *100 TFLOP/s*)", "2.6 minutes, 40 ms a step",
            ),
            ("gradients, .76 million weights", "3 MB", "3,906", "*under 1 ms a step*"),
            (
                "validate 100 scans, four times",
                "{evaluation_all_seconds:0} s a scan, on a CPU with the nano. The 176 tiles of {tiny_512_gflop:0} "
                "GFLOP each take hardly any time on a GPU",
                "four times two scans a rank", "4 minutes",
            ),
            ("checkpoints", "9 MB each (weights and two moments), every 100 steps", "39", "nothing"),
        ),
    ),
}  # fmt: skip


def filled(page: str, stored: Mapping[str, Any]) -> str:
    """Return the page with its tables as a stored run has them.

    Raises:
        KeyError: If the page asks for a table that does not exist, or a table for a detail that was not measured.
    """
    return re.sub(
        r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}\n{table(found[2], stored)}\n{found[3]}",
        page,
        flags=re.DOTALL,
    )


def table(name: str, stored: Mapping[str, Any]) -> str:
    """Return a table as Markdown, with a line end after each row."""
    details = {key: value for group in stored["details"].values() for key, value in group.items()}
    if name == "figures":
        head: Sequence[str] = ("figure", "what", "measured", "aim")
        rows: Sequence[Sequence[str]] = [
            (f"`{figure}`", what, f"**{number(figures_of(dict(stored))[figure], places)}**", aim)
            for figure, places, what, aim in FIGURES
        ]
    else:
        head, rows = TABLES[name]
    lines = [head, ["---"] * len(head), *([_with_details(cell, details) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float, places: int) -> str:
    """Return a number as the page writes it: no 0 before the point."""
    return f"{value:.{places}f}".removeprefix("0" if places else "")


def _with_details(cell: str, details: Mapping[str, float]) -> str:
    def shown(found: re.Match[str]) -> str:
        value = details[found[1]] * float(found[2] or 1) / float(found[3] or 1)
        return number(value, int(found[4]))

    return re.sub(r"\{(\w+)(?:\*([\de]+))?(?:/(\d+))?:(\d)\}", shown, cell)


if __name__ == "__main__":
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), json.loads(STORED.read_text(encoding="utf-8"))))
