"""Benchmarks as a study asks for them after every training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from spice_select.config import RunConfig
from spice_select.errors import ConfigError
from spice_select.reporter import Reporter
from spice_select.study.training import Suites


def suites_of(
    names: str | None, data: Path | None, limit: int | None, execute_code: bool, config: RunConfig, reporter: Reporter
) -> tuple[Suites | None, str | None]:
    """What evaluates a model on benchmarks, and the digest of all that decides its numbers.

    Args:
        names: ``paper``, or names with commas between; None: none.
        data: Folder of local files; None: the Hub.
        limit: Rows of each benchmark.
        execute_code: Run code that the model writes.
        config: The settings of the study.
        reporter: Hears the progress.

    Raises:
        ConfigError: An unknown name, options without benchmarks, or a missing package.
    """
    if names is None:
        if data is not None or limit is not None or execute_code:
            raise ConfigError(
                "--eval-data, --eval-limit and --execute-code go with --suites; name some, or leave them out."
            )
        return None, None
    from spice_select.evaluation.code import SandboxRunner
    from spice_select.evaluation.harness import run_suites
    from spice_select.evaluation.suites import tasks_of

    tasks = tasks_of(names)
    batch = max(1, config.gradients.batch_tokens // 512)

    def evaluate(model: Any, tokenizer: Any) -> dict[str, dict[str, float]]:
        found = run_suites(
            model,
            tokenizer,
            tasks,
            data=data,
            limit=limit,
            batch_size=batch,
            seed=config.seed,
            execute_code=execute_code,
            apply_chat_template=False,
            code_runner=SandboxRunner(),
            reporter=reporter,
        )
        return {task.name: {name: metric.value for name, metric in task.metrics.items()} for task in found.tasks}

    content = [[task.name for task in tasks], None if data is None else str(data), limit, execute_code, config.seed]
    return evaluate, hashlib.sha256(json.dumps(content).encode()).hexdigest()
