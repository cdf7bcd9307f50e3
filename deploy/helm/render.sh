#!/usr/bin/env bash
# Renders the chart for each file in ci/ into tests/deploy/rendered, which the tests examine, and
# checks that Helm refuses what cannot work. Needs helm.
# `render.sh --check` changes nothing and fails where a rendering is out of date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
chart=deploy/helm/fraud-flagger
target=tests/deploy/rendered
if [[ ${1:-} == --check ]]; then
    target="$(mktemp -d)"
    trap 'rm -rf "$target"' EXIT
fi

refuses() { # CHANGE WORD...: the message has these words
    local message
    if message="$(helm template flagger "$chart" --values "$chart/ci/default-values.yaml" \
        --set "$1" 2>&1 >/dev/null)"; then
        echo "Helm accepts $1" >&2
        return 1
    fi
    [[ $message == *"$2"* ]] || {
        echo "Helm refuses $1 without saying \"$2\": $message" >&2
        return 1
    }
}

refuses streamer.replicas=9 "9 streamers for 8 partitions"
refuses streamer.tritonPool=gpu "triton.gpu.enabled is false"
refuses streamer.replics=3 "replics"
refuses settings.triton_url=elsewhere "settings.triton_url: the chart sets it"
refuses kafka.bootstrapServers= "bootstrapServers"
refuses kafka.securityProtocol=sasl_ssl "kafka.username is needed"
refuses kafka.securityProtocol=sasl_ssl,kafka.saslMechanism=AWS_MSK_IAM "aws.region is needed"
refuses modelRepository.s3.bucket=models "modelRepository.s3.region is needed"
refuses modelRepository.existingClaim=a,modelRepository.s3.bucket=b "not both"
refuses gateway.keysSecret= "keysSecret"
refuses valkey.secret.name= "valkey"
refuses settings.case_store_url=x "settings.case_store_url: the chart sets it"
refuses settings.gateway_tls_key=x "end TLS at an ingress"
refuses desk.enabled=true "desk.caseStore.secret.name is needed"
refuses desk.enabled=true,desk.caseStore.secret.name=db "desk.usersSecret is needed"
refuses alerts.enabled=true "alerts.rulesSecret is needed"

export LC_ALL=C
digest="$(cd "$chart" && find . -type f | sort | xargs sha256sum | sha256sum | cut -d ' ' -f 1)"
mkdir -p "$target"
for values in "$chart"/ci/*-values.yaml; do
    name="$(basename "$values" -values.yaml)"
    helm lint --strict --quiet "$chart" --values "$values"
    {
        echo "# Made by deploy/helm/render.sh of chart $digest"
        helm template flagger "$chart" --namespace fraud --values "$values"
    } >"$target/$name.yaml"
done
[[ ${1:-} != --check ]] || diff --recursive "$target" tests/deploy/rendered
