#!/bin/sh
# Runs a program under supervisord in the present folder, configured as its users do: a stop signals the whole process
# group.
cat >supervisord.conf <<CONF
[supervisord]
nodaemon=true
logfile=/dev/null
logfile_maxbytes=0
pidfile=$PWD/supervisord.pid
[program:service]
command=$*
stopasgroup=true
killasgroup=true
stopwaitsecs=30
autorestart=false
CONF
exec supervisord -c supervisord.conf
