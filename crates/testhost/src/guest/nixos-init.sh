#!/bin/sh
# The first process of a NixOS: as init.sh, and with what stage 1 of NixOS leaves to stage 2.
busybox mount -t devtmpfs none /dev
for module in /modules/*.ko; do busybox insmod "$module"; done
tries=0
until [ -b /dev/vda ] || [ $tries -ge 500 ]; do
  busybox usleep 10000
  tries=$((tries + 1))
done
if ! busybox mount -t ext4 -o noatime /dev/vda /root; then
  echo "test host: the root disk can't be mounted" >/dev/console
  busybox reboot -f
fi
busybox ln -s /proc/self/fd /dev/fd
busybox ln -s /proc/self/fd/0 /dev/stdin
busybox ln -s /proc/self/fd/1 /dev/stdout
busybox ln -s /proc/self/fd/2 /dev/stderr
busybox mount -o move /dev /root/dev
busybox mount -t proc proc /root/proc
busybox mount -t sysfs sysfs /root/sys
busybox mount -t tmpfs -o mode=755 none /root/run
exec busybox switch_root /root /sbin/init
