"""Commands and configurations of OpenRLHF and verl as configurations of this project."""
