"""The case desk in the chart: its migration comes first, and it reaches its database alone."""

from __future__ import annotations

import json

from tests.deploy.helm.conftest import Rendering, pod_of


def test_the_desk_reaches_its_database_and_no_more(everything: Rendering) -> None:
    ports = everything.ports_out
    assert ports("desk-migrate") == {53, 5432}
    assert ports("desk") == {53, 5432, 6379}
    assert ports("desk-consumer") == {53, 5432, 6379, 9096, 9196}
    assert ports("alerts") == {53, 443, 465, 587, 9096, 9196}
    assert ports("labels-watch") == {53, 9096, 9196}
    for component in ("desk", "desk-consumer", "desk-migrate"):
        pod = dict(everything.pods())[component]
        mounted = {v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
        assert ("fraud-flagger-valkey" in mounted) == (component != "desk-migrate")
        assert mounted & {"desk-database", "desk-owner"}


def test_the_desk_is_migrated_before_it_starts(everything: Rendering) -> None:
    job = everything.find("Job", "desk-migrate")
    policy = everything.find("NetworkPolicy", "desk-migrate")
    hooks = job["metadata"]["annotations"]
    assert hooks["helm.sh/hook"] == "pre-install,pre-upgrade"
    allowed = policy["metadata"]["annotations"]
    assert allowed["helm.sh/hook"] == hooks["helm.sh/hook"]
    assert int(allowed["helm.sh/hook-weight"]) < int(hooks["helm.sh/hook-weight"])
    # Only the migration has the user who may change tables.
    owner = {v["secret"]["secretName"] for v in pod_of(job)["volumes"] if "secret" in v}
    assert owner == {"desk-owner"}
    consumer = pod_of(everything.find("StatefulSet", "desk-consumer"))
    assert "desk-owner" not in json.dumps(consumer)
