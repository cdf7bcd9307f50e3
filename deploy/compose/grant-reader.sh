#!/usr/bin/env bash
# Makes the user `grafana` of the desk's database, who may read the cases and nothing else.
set -euo pipefail
PGPASSWORD="$(cat /run/secrets/postgres_password)"
export PGPASSWORD
psql --no-psqlrc --set ON_ERROR_STOP=1 \
    --set password="$(cat /run/secrets/cases_reader_password)" <<'SQL'
SELECT 'CREATE ROLE grafana LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana')
\gexec
ALTER ROLE grafana PASSWORD :'password';
GRANT SELECT ON cases TO grafana;
SQL
