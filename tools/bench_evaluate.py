"""Time the evaluation of an ONNX model against the runtime alone on the same batches.

    python tools/bench_evaluate.py exported/ --data sts.tsv [--rounds 5] [--threads 2]

The two take turns. The figure is the share of the runtime's throughput that remains: seconds of the runtime over
seconds of the evaluation, the median over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np


class Recorder:
    """Keep every batch that the runner gets."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.seen: list[Mapping[str, np.ndarray]] = []
        self.input_names, self.output_names = runner.input_names, runner.output_names

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Any:
        self.seen.append({name: inputs[name] for name in self.input_names})
        return self.runner(inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="an exported directory")
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", default="sts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()

    import onnxruntime

    from exporters.runners import OnnxRuntimeRunner
    from qdq.tasks.evaluate import score_model
    from qdq.tasks.evaluation_settings import EvaluationSettings
    from qdq.tasks.model_under_test import model_under_test_of, open_model_under_test

    settings = EvaluationSettings(batch_size=options.batch_size)
    model = options.folder / "model.onnx"
    recorder = Recorder(OnnxRuntimeRunner(model, threads=options.threads))
    score_model(model_under_test_of(recorder, options.folder, options.task), options.task, options.data, settings)
    batches = recorder.seen
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = options.threads
    session = onnxruntime.InferenceSession(model, session_options, providers=["CPUExecutionProvider"])
    under_test = open_model_under_test(options.folder, options.task, threads=options.threads)

    def raw() -> None:
        for batch in batches:
            session.run(None, batch)

    def ours() -> None:
        score_model(under_test, options.task, options.data, settings)

    rounds = []
    for index in range(options.rounds):
        seconds = {}
        for side in (raw, ours) if index % 2 else (ours, raw):
            start = time.perf_counter()
            side()
            seconds[side] = time.perf_counter() - start
        rounds.append((seconds[raw], seconds[ours]))
        print(f"round {index + 1}: runtime alone {seconds[raw]:.2f} s, evaluation {seconds[ours]:.2f} s", flush=True)
    rows = sum(len(batch["input_ids"]) for batch in batches)
    share = statistics.median(bare / whole for bare, whole in rounds)
    fastest = min(whole for _, whole in rounds)
    print(
        f"{rows} rows in {len(batches)} batches; {rows / fastest:.0f} rows a second; {share:.3f} of the runtime alone"
    )


if __name__ == "__main__":
    main()
