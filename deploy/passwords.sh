#!/bin/sh
# Runs in the postgres image after roles.sql, once: gives the two logins their passwords and the database to its owner.
set -eu
psql --no-psqlrc --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  --set owner_password="$OWNER_PASSWORD" --set app_password="$APP_PASSWORD" --set db="$POSTGRES_DB" <<'SQL'
alter role fermata_owner password :'owner_password';
alter role fermata_app password :'app_password';
alter database :"db" owner to fermata_owner;
SQL
