"""The commands in docs/gateway.md do what the page says."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flagger.settings import Settings
from gateway.app import create_app
from gateway.keys import KeyFile, new_key
from gateway.server import DrainingServer, server_config

pytestmark = pytest.mark.anyio
PAGE = Path(__file__).parents[2] / "docs" / "gateway.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_commands_of_the_page(gateway: Any, tmp_path: Path) -> None:
    file = KeyFile.open(tmp_path / "keys.json")
    key, text = new_key("payments", ("score", "feedback"), time.time_ns() // 1_000_000)
    file.put(key)
    settings = Settings(gateway_keys_file=file.path, gateway_drain_ms=0, gateway_deadline_ms=2_000)
    backends = gateway.app.state.door.backends

    async def connect(_settings: Settings) -> Any:
        return backends

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = create_app(settings, connect=connect)
    server = DrainingServer(server_config(app, settings, "127.0.0.1", port), 0)
    # Its own loop: the backends here are made for one loop only, so Valkey is connected there.
    thread = threading.Thread(target=server.run)
    thread.start()
    environment = os.environ | {"URL": f"http://127.0.0.1:{port}", "KEY": text}
    answers = []
    try:
        for _ in range(500):
            if server.started:
                break
            await asyncio.sleep(0.02)
        commands = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
        assert len(commands) == 5
        for command in commands:
            process = await asyncio.create_subprocess_shell(
                command, env=environment, stdout=asyncio.subprocess.PIPE
            )
            out, _ = await asyncio.wait_for(process.communicate(), 20)
            assert process.returncode == 0
            answers.append(json.loads(out))
    finally:
        server.should_exit = True
        await asyncio.to_thread(thread.join, 10)
    scored, batch, stored, label, models = answers
    assert scored["decision_source"] == "model"
    assert [item["status"] for item in batch["results"]] == [200, 200]
    assert stored == scored
    assert label["terminal_id"] == "tok_t_9f2"
    assert models["model"] == "fraud_onnx"
