#!/usr/bin/env bash
# Databases for builds: PostgreSQL, MariaDB, Redis. Installed and never started at boot: a build starts the one it needs
# as its own user, on a directory in its workspace, so that builds beside each other share nothing.
set -euo pipefail
# shellcheck source=setup_scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'USAGE'
usage: 40-databases.sh [--profile minimal|full]

Installs PostgreSQL, MariaDB and Redis for builds to start.
USAGE
}

# Debian makes a cluster and starts it at boot unless told not to, before its package comes.
no_cluster() {
    put /etc/postgresql-common/createcluster.d/build-agent.conf <<<'create_main_cluster = false'
}

# Debian keeps PostgreSQL's own programs out of the PATH, for several versions beside each other; an image has one.
link_postgresql() {
    local name
    for name in initdb pg_ctl postgres; do
        ln -sfn "/usr/lib/postgresql/$POSTGRESQL_VERSION/bin/$name" "/usr/local/bin/$name"
    done
    say "initdb, pg_ctl and postgres $POSTGRESQL_VERSION are in /usr/local/bin"
}

# It lies in /usr/sbin, which is not in a build's PATH.
link_mariadb() {
    ln -sfn /usr/sbin/mariadbd /usr/local/bin/mariadbd
}

# Made by its package, with a root password of nobody; builds have data directories of their own.
empty_mariadb() {
    if [[ -d /var/lib/mysql/mysql ]]; then
        find /var/lib/mysql -mindepth 1 -delete
        say "/var/lib/mysql is empty: mariadb-install-db makes a build its own"
    fi
}

begin "$@"
no_cluster
install_packages
disable postgresql.service mariadb.service redis-server.service
link_postgresql
link_mariadb
empty_mariadb
