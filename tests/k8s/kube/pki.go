// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	validity  = 30 * 24 * time.Hour
	clockSkew = time.Hour
	// rootFile is written last: where it is, everything else is there too.
	rootFile = "ca.crt"
)

const kubeconfig = `apiVersion: v1
kind: Config
current-context: ambit
contexts: [{name: ambit, context: {cluster: ambit, user: %[1]s}}]
clusters: [{name: ambit, cluster: {server: %[2]q, certificate-authority-data: %[3]s}}]
users: [{name: %[1]s, user: {client-certificate-data: %[4]s, client-key-data: %[5]s}}]
`

// authority signs with a key that exists nowhere but in its directory.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

// pair is a certificate and its key, as PEM.
type pair struct{ cert, key []byte }

// pki writes the keys, certificates and kubeconfigs of a throw-away cluster, once.
func pki() int {
	flags := flag.NewFlagSet("pki", flag.ExitOnError)
	server := flags.String("server", "", "URL of the API server, for the kubeconfigs")
	names := flags.String("names", "", "comma-separated names and addresses of the API server")
	nodes := flags.String("nodes", "", "comma-separated NAME=ADDRESS of the nodes")
	if err := flags.Parse(os.Args[1:]); err != nil || flags.NArg() != 1 || *server == "" {
		fmt.Fprintln(os.Stderr, "usage: kube pki -server URL [-names LIST] [-nodes LIST] DIRECTORY")
		return exitUsage
	}
	err := writeAll(flags.Arg(0), *server, split(*names), split(*nodes))
	if err != nil {
		fmt.Fprintln(os.Stderr, "pki:", err)
		return 1
	}
	return 0
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

func writeAll(dir, server string, names, nodes []string) error {
	if _, err := os.Stat(filepath.Join(dir, rootFile)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	root, err := newAuthority(dir, "ambit-test-cluster")
	if err != nil {
		return err
	}
	front, err := newAuthority(dir, "ambit-test-front-proxy")
	if err != nil {
		return err
	}
	err = errors.Join(
		root.files("apiserver", pkix.Name{CommonName: "kube-apiserver"}, append(names, "localhost", "127.0.0.1",
			"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")...),
		root.files("apiserver-kubelet-client",
			pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}}),
		front.files("front-proxy-client", pkix.Name{CommonName: "front-proxy-client"}),
		write(dir, "front-proxy-ca.crt", 0o644, front.pem),
		root.config("admin", server, pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}),
		root.config("kube-controller-manager", server, pkix.Name{CommonName: "system:kube-controller-manager"}),
		root.config("kube-scheduler", server, pkix.Name{CommonName: "system:kube-scheduler"}),
		root.config("kube-proxy", server, pkix.Name{CommonName: "system:kube-proxy"}),
		serviceAccountKey(dir),
	)
	if err != nil {
		return err
	}
	for _, node := range nodes {
		name, address, _ := strings.Cut(node, "=")
		subject := pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}}
		if err := root.config("node-"+name, server, subject, name, address, "127.0.0.1"); err != nil {
			return err
		}
	}
	keyPEM, err := encodeKey(root.key)
	if err != nil {
		return err
	}
	if err := write(dir, "ca.key", 0o600, keyPEM); err != nil {
		return err
	}
	return write(dir, rootFile, 0o644, root.pem)
}

func template(subject pkix.Name) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial, Subject: subject, BasicConstraintsValid: true,
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(validity),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}, nil
}

func newAuthority(dir, name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert, err := template(pkix.Name{CommonName: name})
	if err != nil {
		return nil, err
	}
	cert.IsCA = true
	cert.KeyUsage |= x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		return nil, err
	}
	// Read back: it then bears the key identifier that the leaves refer to.
	if cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return &authority{dir: dir, cert: cert, key: key, pem: block("CERTIFICATE", der)}, nil
}

// sign makes a certificate for clients and servers, with a new key.
func (a *authority) sign(subject pkix.Name, names []string) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	cert, err := template(subject)
	if err != nil {
		return pair{}, err
	}
	cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	for _, name := range names {
		if address := net.ParseIP(name); address != nil {
			cert.IPAddresses = append(cert.IPAddresses, address)
		} else {
			cert.DNSNames = append(cert.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, key.Public(), a.key)
	if err != nil {
		return pair{}, err
	}
	keyPEM, err := encodeKey(key)
	return pair{cert: block("CERTIFICATE", der), key: keyPEM}, err
}

func (a *authority) files(file string, subject pkix.Name, names ...string) error {
	_, err := a.signed(file, subject, names)
	return err
}

func (a *authority) signed(file string, subject pkix.Name, names []string) (pair, error) {
	made, err := a.sign(subject, names)
	if err != nil {
		return pair{}, err
	}
	return made, errors.Join(
		write(a.dir, file+".key", 0o600, made.key), write(a.dir, file+".crt", 0o644, made.cert))
}

// config writes a certificate and a kubeconfig that holds it.
func (a *authority) config(user, server string, subject pkix.Name, names ...string) error {
	made, err := a.signed(user, subject, names)
	if err != nil {
		return err
	}
	b64 := base64.StdEncoding.EncodeToString
	text := fmt.Sprintf(kubeconfig, user, server, b64(a.pem), b64(made.cert), b64(made.key))
	return write(a.dir, user+".kubeconfig", 0o600, []byte(text))
}

func serviceAccountKey(dir string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	return errors.Join(
		write(dir, "sa.key", 0o600, block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))),
		write(dir, "sa.pub", 0o644, block("PUBLIC KEY", public)))
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return block("PRIVATE KEY", der), err
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func write(dir, file string, mode os.FileMode, data []byte) error {
	return os.WriteFile(filepath.Join(dir, file), data, mode)
}
