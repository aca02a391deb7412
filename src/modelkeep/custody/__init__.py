"""Custody: releases and their states, the key ring, scanning, admission. The releases log is the authority on all of it."""
