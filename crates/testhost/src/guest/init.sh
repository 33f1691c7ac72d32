#!/bin/sh
# The first process: it loads what the root disk needs, mounts it and goes on there.
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
busybox mount -o move /dev /root/dev
exec busybox switch_root /root /sbin/init
