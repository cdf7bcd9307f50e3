"""The commands in docs/gateway.md do what the page says."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from flagger.settings import Settings
from gateway.keys import KeyFile, new_key

pytestmark = pytest.mark.anyio
PAGE = Path(__file__).parents[2] / "docs" / "gateway.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_commands_of_the_page(gateway: Any, tmp_path: Path) -> None:
    file = KeyFile.open(tmp_path / "keys.json")
    key, text = new_key("payments", ("score", "feedback"), time.time_ns() // 1_000_000)
    file.put(key)
    settings = Settings(gateway_keys_file=file.path, gateway_drain_ms=0, gateway_deadline_ms=2_000)
    commands = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(commands) == 5
    answers = []
    async with gateway.serving(settings) as port:
        environment = os.environ | {"URL": f"http://127.0.0.1:{port}", "KEY": text}
        for command in commands:
            process = await asyncio.create_subprocess_shell(
                command, env=environment, stdout=asyncio.subprocess.PIPE
            )
            out, _ = await asyncio.wait_for(process.communicate(), 20)
            assert process.returncode == 0
            answers.append(json.loads(out))
    scored, batch, stored, label, models = answers
    assert scored["decision_source"] == "model"
    assert [item["status"] for item in batch["results"]] == [200, 200]
    assert stored == scored
    assert label["terminal_id"] == "tok_t_9f2"
    assert models["model"] == "fraud_onnx"
