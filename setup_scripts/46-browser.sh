#!/usr/bin/env bash
# A browser for the tests of builds: Chromium with its driver, headless.
set -euo pipefail
# shellcheck source=setup_scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'USAGE'
usage: 46-browser.sh [--profile minimal|full]

Installs Chromium, its driver and fonts.
USAGE
}

# Where tools of other languages look for it.
name_browser() {
    put /etc/profile.d/build-agent-browser.sh <<'CONF'
export CHROME_BIN=/usr/bin/chromium CHROMEDRIVER_BIN=/usr/bin/chromedriver PUPPETEER_EXECUTABLE_PATH=/usr/bin/chromium
CONF
    ln -sfn /usr/bin/chromium /usr/local/bin/google-chrome
}

begin "$@"
install_packages
name_browser
say "$(chromium --version 2>/dev/null || echo 'chromium does not say its version')"
