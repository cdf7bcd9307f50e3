"""The chart on AWS: an identity instead of passwords, and models in a bucket."""

from __future__ import annotations

from tests.deploy.helm.conftest import Rendering, environment_of


def test_on_aws_our_pods_have_an_identity_and_no_password(aws: Rendering) -> None:
    for component, pod in aws.pods():
        is_ours = not component.startswith("triton")
        assert pod.get("serviceAccountName") == ("fraud-flagger" if is_ours else None)
        # The role's token is a volume of its own, put there by EKS; the cluster's own stays away.
        assert pod["automountServiceAccountToken"] is False
    for component, pod in aws.ours():
        if component == "desk-migrate":
            continue  # it talks to the database alone
        environment = environment_of(pod)
        assert environment["FLAGGER_KAFKA_SASL_MECHANISM"] == "AWS_MSK_IAM"
        assert environment["FLAGGER_KAFKA_AWS_REGION"] == environment["AWS_REGION"]
        assert not any("PASSWORD" in name or "USERNAME" in name for name in environment)
    for component in ("streamer", "gateway", "smoke"):
        assert {443, 9098} <= aws.ports_out(component)
        rules = aws.find("NetworkPolicy", component)["spec"]["egress"]
        assert {"ipBlock": {"cidr": "169.254.170.23/32"}} in [
            p for r in rules for p in r.get("to", [])
        ]


def test_models_may_stand_in_a_bucket(aws: Rendering) -> None:
    (volume,) = aws.of_kind("PersistentVolume")
    (claim,) = aws.of_kind("PersistentVolumeClaim")
    assert volume["spec"]["csi"]["driver"] == "s3.csi.aws.com"
    assert volume["spec"]["csi"]["volumeAttributes"] == {"bucketName": "bank-models"}
    assert {"read-only", "allow-other", "region eu-central-1", "prefix fraud/production/"} == set(
        volume["spec"]["mountOptions"]
    )
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    assert volume["spec"]["claimRef"]["name"] == claim["metadata"]["name"]
    # An empty class on both sides, or the cluster's default one makes a disk.
    assert claim["spec"]["storageClassName"] == volume["spec"]["storageClassName"] == ""
    assert claim["spec"]["accessModes"] == volume["spec"]["accessModes"] == ["ReadOnlyMany"]
    mounted = [
        source["persistentVolumeClaim"]
        for _, pod in aws.pods()
        for source in pod["volumes"]
        if "persistentVolumeClaim" in source
    ]
    assert {source["claimName"] for source in mounted} == {claim["metadata"]["name"]}
    assert all(source["readOnly"] for source in mounted)
