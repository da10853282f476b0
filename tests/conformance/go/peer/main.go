// Peer serves one of containerd's built-in snapshotters on a socket, by containerd's own gRPC
// service: what ours is measured against.
package main

import (
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/native"
	"github.com/containerd/containerd/snapshots/overlay"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func run() error {
	kind := flag.String("snapshotter", "overlayfs", "overlayfs or native")
	root := flag.String("root", "", "directory of the snapshotter")
	socket := flag.String("socket", "", "path of the socket")
	flag.Parse()
	var snapshotter snapshots.Snapshotter
	var err error
	switch *kind {
	case "overlayfs":
		// As containerd configures it: content is deleted by Cleanup.
		snapshotter, err = overlay.NewSnapshotter(*root, overlay.AsynchronousRemove)
	case "native":
		snapshotter, err = native.NewSnapshotter(*root)
	default:
		err = fmt.Errorf("no snapshotter %q here", *kind)
	}
	if err != nil {
		return err
	}
	defer snapshotter.Close()
	listener, err := net.Listen("unix", *socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	go func() {
		<-stop
		server.GracefulStop()
	}()
	fmt.Println("listening on", *socket)
	return server.Serve(listener)
}
