"""`python -m agent.fleet.local FOLDER LOCK READY`: the keeper of one machine, started by the provider."""

from agent.fleet.local.keeper import main

main()
