#!/bin/sh
exec python3 -m autoseg.delivery.container.program exec
