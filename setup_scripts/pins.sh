#!/usr/bin/env bash
# The versions an image is made of, all of them Debian 12's own. Names of packages are made of them (profiles.sh), and
# the checks hold every tool against its line here: another version in the image is a failed check, not a surprise.
# They are for those who read this file.
# shellcheck disable=SC2034
set -euo pipefail

DEBIAN_VERSION=12
DEBIAN_CODENAME=bookworm

PYTHON_VERSION=3.11
NODEJS_VERSION=18
RUBY_VERSION=3.1
GO_VERSION=1.19
JAVA_VERSION=17
GCC_VERSION=12
PHP_VERSION=8.2

GIT_VERSION=2.39
CMAKE_VERSION=3.25
POSTGRESQL_VERSION=15
MARIADB_VERSION=10.11
REDIS_VERSION=7.0
PODMAN_VERSION=4.3
