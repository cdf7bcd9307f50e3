#!/usr/bin/env bash
# Fraud Flagger under Docker Compose.
#
#   ./compose.sh up [ARGS]   make secrets and the image if missing, start everything, wait
#   ./compose.sh smoke       send payments through both doors, check each decision
#   ./compose.sh down [ARGS] stop; `down --volumes` also forgets all data
#   ./compose.sh secrets     only make what is missing in secrets/
#   ./compose.sh ANYTHING    handed to `docker compose`
#
# GPU: COMPOSE_PROFILES=gpu ./compose.sh up
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
folder="${FRAUD_FLAGGER_SECRETS:-$here/secrets}"
image="${FRAUD_FLAGGER_IMAGE:-fraud-flagger:local}"

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

# The containers' users differ from the owner: files are readable, their folder is closed.
secrets() {
    local password
    mkdir -p "$folder"
    chmod 700 "$folder"
    if [[ ! -s $folder/valkey_conf || ! -s $folder/valkey_url ]]; then
        password="$(random)"
        printf 'requirepass %s\n' "$password" >"$folder/valkey_conf"
        printf 'valkey://:%s@valkey:6379/0\n' "$password" >"$folder/valkey_url"
    fi
    if [[ ! -s $folder/postgres_password || ! -s $folder/case_store_url ]]; then
        password="$(random)"
        printf '%s' "$password" >"$folder/postgres_password"
        printf 'postgresql+psycopg://desk:%s@postgres/desk\n' "$password" >"$folder/case_store_url"
    fi
    [[ -s $folder/cases_reader_password ]] || random >"$folder/cases_reader_password"
    [[ -e $folder/alerts_rules ]] || : >"$folder/alerts_rules"
    [[ -s $folder/grafana_admin_password ]] || random >"$folder/grafana_admin_password"
    [[ -e $folder/smoke_key ]] || : >"$folder/smoke_key"
    chmod 644 "$folder"/*
}

compose() { docker compose --project-directory "$here" --file "$here/compose.yaml" "$@"; }

# The pages do not start without a user.
lead() {
    [[ -s $folder/desk_lead_password ]] && return
    random >"$folder/desk_lead_password"
    chmod 600 "$folder/desk_lead_password"
    (cat "$folder/desk_lead_password" && echo) |
        compose run --rm --no-deps -T tools desk add-user lead --role lead --password-stdin
}

key() {
    # The gateway does not start without a key; this one is the smoke test's.
    [[ -s $folder/smoke_key ]] && return
    compose run --rm --no-deps tools keys create smoke --scope score |
        grep -o 'ffk_[0-9a-f]*_[0-9a-f]*' >"$folder/smoke_key"
}

case "${1:-help}" in
secrets)
    secrets
    ;;
up)
    shift
    secrets
    docker image inspect "$image" >/dev/null 2>&1 ||
        docker build --file "$here/../docker/Dockerfile" --tag "$image" "$here/../.."
    key
    lead
    compose up --detach --wait "$@"
    echo "desk http://localhost:8501 (lead; password in $folder/desk_lead_password)"
    echo "gateway http://localhost:8080, Grafana http://localhost:3000 (admin;" \
        "password in $folder/grafana_admin_password)"
    ;;
smoke)
    compose run --rm --no-deps smoke
    ;;
help | -h | --help)
    sed -n '2,10p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'
    ;;
*)
    compose "$@"
    ;;
esac
