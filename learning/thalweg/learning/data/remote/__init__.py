"""Data at URLs, which workers read and no client uploads: found, and downloaded if it is not on this machine."""
